//! The requests that every mount refuses, with an errno for each.
//!
//! The defaults of `fuser` would refuse most of them too, but with a line in the log for each.

/// Writes methods of [`fuser::Filesystem`] that answer with an errno. The types are those of the
/// request's arguments.
macro_rules! refuse {
    ($($name:ident($($argument:ty),*) $reply:ty = $errno:ident;)*) => {
        $(
            fn $name(&self, _: &Request, $(_: $argument,)* reply: $reply) {
                reply.error(Errno::$errno);
            }
        )*
    };
}

pub(super) use refuse;
