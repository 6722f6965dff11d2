//! Everything together, against real peers: one file per behaviour.

mod architecture;
