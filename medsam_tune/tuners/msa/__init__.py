"""Medical SAM Adapter whole: the bottleneck, its places, hyper-prompting, and the method as peft knows it."""
