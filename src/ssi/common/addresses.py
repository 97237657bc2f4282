"""The addresses of the virtual network 192.168.50.0/24: everything follows from a node's number."""

from __future__ import annotations

NETWORK = "192.168.50.0"
PREFIX_LENGTH = 24
NETMASK = "255.255.255.0"
BROADCAST = "192.168.50.255"

GATEWAY = "192.168.50.254"
GATEWAY_MAC = "02:00:00:00:00:fe"

NAME_SERVER = GATEWAY
"""The uplink answers there for the host's resolver (DNS over UDP)."""

MULTICAST = "239.192.50.1"
"""Of the administratively scoped block (RFC 2365), for corosync's udp transport."""

MTU = 32000
"""Large frames are what carries: no segmentation offload crosses a socket pair, so every frame is a
full trip through both kernels. 32000 bytes and the kernel's own headers just fit an allocation of
32 KiB, the largest that Linux still tries hard to find when memory is tight."""


def node_address(node: int) -> str:
    """Return the IPv4 address of `node`."""
    return f"192.168.50.{node}"


def node_mac(node: int) -> str:
    """Return the MAC address of `node`; the switch lets it send from no other."""
    return f"02:00:00:00:00:{node:02x}"


def node_name(node: int) -> str:
    """Return the name by which nodes find `node`."""
    return f"node{node}"


def wire_argument(node: int, fd: int) -> str:
    """Return the word for a UML kernel's command line that makes `fd` its interface vec0.

    depth: 64 is the most the driver takes without complaint.  gro=0: it only makes receive buffers
    64 KiB large, for frames that cannot come here.  Not vec=0: without its queue the driver throws
    away what the socket does not take at once.
    """
    return f"vec0:transport=fd,fd={fd},depth=64,gro=0,mtu={MTU},mac={node_mac(node)}"
