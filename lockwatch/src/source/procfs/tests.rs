//! The whole source over folders of hand-made files, and once over the running kernel.
