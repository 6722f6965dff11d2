//! Files of the product, compiled with shuttle's locks and atomics, and what they need of the rest.
//! The models are in `tests/`.

extern crate std_model as std;

pub mod agent;
pub mod telemetry;
