//! Small models of what runs beside each other, under a scheduler that tries many orders of their
//! steps. `eviction` runs the product's own files. The steps of the others are those of the code
//! named at the top of each file: who changes one changes the other.

mod eviction;
mod flight;
mod sweep;

/// Orders tried of each model; together some seconds.
const ORDERS: usize = 1_500;
