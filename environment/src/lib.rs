//! The Dormouse environment: images, launcher, supervisor, wake scheduler, management server.
