//! Which packets the node forwards whatever other firewalls say by default.
