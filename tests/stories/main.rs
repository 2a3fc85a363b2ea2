//! The stories: real daemons and plugins on several nodes, and what happens to them. Each file is one
//! story, its topology drawn on top.

#![forbid(unsafe_code)]

mod address_change;
mod api_server;
mod attach;
mod bad_leases;
mod chart;
mod cluster_changes;
mod cluster_churn;
mod cluster_iptables;
mod cluster_manifests;
mod cluster_reach;
mod containerd;
mod direct_routing;
mod disk_full;
mod docker;
mod firewall;
mod foreign_state;
mod golden;
mod kubernetes;
mod kubernetes_away;
mod kubernetes_changes;
mod kubernetes_cidrs;
mod kubernetes_faults;
mod metrics;
mod mtu;
mod podman;
mod race;
mod reach;
mod repair;
mod restart;
mod same_subnet;
mod second_instance;
mod start;
mod store_away;
mod store_changes;
mod take_over;
mod udp;
mod udp_fallbacks;
mod udp_families;
mod udp_faults;
mod underlay;
