//! The rig and the harness of the black-box tests.
