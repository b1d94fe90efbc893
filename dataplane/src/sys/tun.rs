//! TUN devices with a virtio_net header.

/// Segmentation offloads a TUN device accepted (TUNSETOFFLOAD), probed by degrees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial checksums (TUN_F_CSUM).
    pub checksum: bool,
    /// TCP segmentation, both families (TUN_F_TSO4, TUN_F_TSO6).
    pub tso: bool,
    /// UDP segmentation, both families (TUN_F_USO4, TUN_F_USO6; Linux 6.2).
    pub uso: bool,
}
