"""The words everybody uses, the ports, and the few utilities that touch the world once."""
