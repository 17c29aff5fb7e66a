"""What the default VMM does for its guest: one module for each kind of exit."""
