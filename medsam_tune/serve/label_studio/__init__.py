"""A tuned model behind Label Studio's protocol for ML backends: boxes, clicks and brush strokes in, brush masks out."""
