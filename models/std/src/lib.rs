//! The standard library, except that locks, atomics and threads are those of shuttle, which tries
//! many orders of their operations. A crate that is to be modelled has it as `std`.

pub use ::std::*;

pub mod sync {
    pub use ::std::sync::*;
    pub use shuttle::sync::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    };

    pub mod atomic {
        pub use ::std::sync::atomic::*;
        pub use shuttle::sync::atomic::{
            AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, fence,
        };
    }
}

pub mod thread {
    pub use ::std::thread::*;
    pub use shuttle::thread::{JoinHandle, sleep, spawn, yield_now};
}
