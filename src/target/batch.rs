//! Packing changes into batches.
