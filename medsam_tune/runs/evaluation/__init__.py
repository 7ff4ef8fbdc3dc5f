"""What ``medsam-tune evaluate`` does: open models and data, ask case after case, and write what was found."""
