"""What other people's tools recorded, read into the lab's terms."""
