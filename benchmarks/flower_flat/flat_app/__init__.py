"""flat-app: one flat tensor there and back."""
