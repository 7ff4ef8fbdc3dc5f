import gc

# What is imported and collected lives as long as the tests; to look through it for garbage time and again takes a fifth of
# the start. It is on again when all is collected.
gc.disable()
