//! Ways to break a node.
