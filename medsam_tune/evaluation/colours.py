"""The colours of lines over images, of the eight that Okabe and Ito (2008, "Color Universal Design") chose for every eye."""

TRUTH_COLOUR = "#56B4E9"
TUNED_COLOUR = "#E69F00"
UNTUNED_COLOUR = "#CC79A7"
PROMPT_COLOUR = "#009E73"
