//! Wires, spawns, names and joins every task.
