//! containerd's gRPC API, generated from `proto/`: the agent serves its snapshots service, `rpull` calls the others.

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
