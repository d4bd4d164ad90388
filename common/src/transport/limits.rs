//! Limits of the transport, and its settings for quinn.

use std::sync::Arc;
use std::time::Duration;

use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

/// Bytes that one stream may have in flight or unread.
pub const STREAM_WINDOW: u32 = 4 << 20;
/// Bytes that all streams of a connection may have in flight or unread.
pub const CONNECTION_WINDOW: u32 = 24 << 20;
/// The same for a connection that is not through the hello: the answering side opens it to [`CONNECTION_WINDOW`], or to
/// what a limit of rates lets pass.
pub const FIRST_WINDOW: u32 = 128 << 10;
/// Bytes that a connection keeps until they are acknowledged. Within the receive buffer that Linux grants a UDP socket
/// by common settings: twice as much overran it on loopback (0 lost packets became thousands) and was no faster.
pub const SEND_WINDOW: u64 = 4 << 20;
/// Streams that a peer may have open at once, of each direction.
pub const MAX_STREAMS: u32 = 256;
/// A silent connection is probed this often.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A connection whose peer says nothing for this long is lost.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// TLS and hello together must be done within this.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Receive and send buffer asked of the kernel for a UDP socket, in bytes; it may grant less.
pub const SOCKET_BUFFER: usize = 8 << 20;
/// Largest UDP payload tried: fits Ethernet's 1500 bytes with IPv6. Jumbo payloads (8952) lost bursts on loopback that
/// were taken for a black hole and threw the path back to the initial payload: 200 to 450 MB/s instead of 600.
pub const MAX_UDP_PAYLOAD: u16 = 1452;
/// UDP payload before discovery, safe on every path.
pub const INITIAL_UDP_PAYLOAD: u16 = 1200;
/// Bursts of loss are mistaken for a shrunken path; discovery looks again this soon afterwards.
pub const BLACK_HOLE_COOLDOWN: Duration = Duration::from_secs(5);
/// Packets acknowledged together by a receiver.
pub const ACK_EVERY: u32 = 10;
/// Handshakes that may be going on at once at one endpoint; further ones are ignored and try again.
pub const MAX_HANDSHAKES: usize = 256;

/// The transport settings of the dialling side.
pub(super) fn transport() -> Arc<TransportConfig> {
    Arc::new(with_window(CONNECTION_WINDOW))
}

/// The transport settings of the answering side.
pub(super) fn server_transport() -> Arc<TransportConfig> {
    Arc::new(with_window(FIRST_WINDOW))
}

fn with_window(connection: u32) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    let _ = mtu.upper_bound(MAX_UDP_PAYLOAD).black_hole_cooldown(BLACK_HOLE_COOLDOWN);
    let mut acks = AckFrequencyConfig::default();
    let _ = acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY));
    let idle = VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32);
    let mut config = TransportConfig::default();
    let _ = config
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(connection))
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_STREAMS))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(idle)))
        .initial_mtu(INITIAL_UDP_PAYLOAD)
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks))
        .enable_segmentation_offload(true);
    config
}

/// The endpoint settings of both sides.
pub(super) fn endpoint() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // The value is within QUIC's bounds, which are all that is checked.
    let _ = config.max_udp_payload_size(MAX_UDP_PAYLOAD).expect("a valid UDP payload size");
    config
}
