//! Any octets, as packets from the wire and from the device of the `udp` backend.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| udp::fuzz::packets(data));
