//! End-to-end tests: real programs in network namespaces. They need root and fail where they cannot run.

mod cluster;
mod mesh;
mod support;
