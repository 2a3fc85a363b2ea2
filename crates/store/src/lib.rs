//! Where leases come from, behind one type.
