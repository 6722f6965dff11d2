//! The agent, called as containerd calls it, and the files that containers read from it.

mod burst;
mod cri_proxy;
mod doctor;
mod erofs;
mod identity;
mod limits;
mod merged;
mod model;
mod mount;
mod peaks;
mod profiles;
mod provenance;
mod pull;
mod reads;
mod watching;
mod wire;
