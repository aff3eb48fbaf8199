"""Who works here, what they may do, and the lists people choose from."""
