//! Small models of what runs beside each other, under a scheduler that tries many orders of their steps. The steps are
//! those of the code named at the top of each file: who changes one changes the other.
#![cfg(test)]

mod flight;
mod sweep;

/// Orders tried of each model; together some seconds.
const ORDERS: usize = 1_500;
