"""The resources that a process computes with: devices, memory, worker processes, other machines."""
