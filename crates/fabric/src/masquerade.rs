//! Which packets leave the node with its address.
