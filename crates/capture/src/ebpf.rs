//! The object and the kernel calls around it that aya does not offer. The only place of this crate with `unsafe`.

mod link;
mod loader;

pub(crate) use link::{PinnedLink, attach_or_replace};
pub(crate) use loader::{Guests, Loader};
