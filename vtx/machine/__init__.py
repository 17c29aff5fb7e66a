"""What silicon holds: registers, the VMCS, memory and its translation, and the events it emits."""
