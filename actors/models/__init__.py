"""Models that are trained on history and judge many devices at once. Needs numpy, so it is imported where a
model is at work and nowhere else; it never imports scikit-learn, which only fits (`fitting`) and stores."""
