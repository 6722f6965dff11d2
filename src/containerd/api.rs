//! containerd's gRPC APIs, generated from `proto/`.
//!
//! The agent serves the snapshots service and decodes kubelets' requests to the CRI service. The
//! client in this module calls the services as containerd's own client does.

#![expect(
    clippy::clone_on_ref_ptr,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]

pub mod types {
    tonic::include_proto!("containerd.types");
}

pub mod services {
    pub mod content {
        pub mod v1 {
            tonic::include_proto!("containerd.services.content.v1");
        }
    }

    pub mod diff {
        pub mod v1 {
            tonic::include_proto!("containerd.services.diff.v1");
        }
    }

    pub mod images {
        pub mod v1 {
            tonic::include_proto!("containerd.services.images.v1");
        }
    }

    pub mod leases {
        pub mod v1 {
            tonic::include_proto!("containerd.services.leases.v1");
        }
    }

    pub mod snapshots {
        pub mod v1 {
            tonic::include_proto!("containerd.services.snapshots.v1");
        }
    }
}

pub mod runtime {
    pub mod v1 {
        use std::fmt;

        tonic::include_proto!("runtime.v1");

        impl fmt::Debug for AuthConfig {
            /// Formats only the server address, because the other fields are secrets.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct("AuthConfig")
                    .field("server_address", &self.server_address)
                    .finish_non_exhaustive()
            }
        }
    }
}
