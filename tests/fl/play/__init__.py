"""Jobs played in one process."""
