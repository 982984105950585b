"""What computes attention of one block on a device, and the choice among them."""
