//! A pod that this node carries.

use std::sync::Arc;

use leyline_capture::PodCapture;
use leyline_net::NetNs;
use leyline_types::WorkloadName;

use super::{
    guests::Guests,
    location::{Found, Location},
};
use crate::proxy::{Extent, Pod};

/// A pod that is carried.
pub(super) struct Managed {
    pub(super) pod: Arc<Pod>,
    /// None where others turn its connections to us.
    pub(super) capture: Option<Arc<PodCapture>>,
    pub(super) location: Location,
    pub(super) extent: Extent,
    /// None where the pod has none.
    pub(super) guests: Option<Guests>,
    pub(super) generation: u64,
}

impl Managed {
    /// Whether this is the pod that is named now.
    pub(super) fn is_in(&self, name: &WorkloadName, given: Option<&NetNs>) -> bool {
        let same_place = match given {
            Some(netns) => netns.cookie() == self.pod.netns.cookie(),
            None => self.location.look() != Found::Other,
        };
        self.pod.name == *name && same_place
    }
}
