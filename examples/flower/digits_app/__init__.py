"""digits-app: a Flower app."""
