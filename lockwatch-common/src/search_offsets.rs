//! Where the members are that only a search for unseen references reads.
//!
//! Apart from [`crate::offsets`], because a kernel that lacks one of these loses one place to look
//! in and nothing else.

use crate::offsets::offsets;

/// The name of the global that holds the table in the BPF object.
pub const GLOBAL: &str = "SEARCH_OFFSETS";

/// [`SearchOffsets::ring_layout`]: where registered files are is not known.
pub const RING_UNKNOWN: u32 = 0;
/// [`SearchOffsets::ring_layout`]: an array of words that are the files, but for their low bits.
pub const RING_WORDS: u32 = 1;
/// [`SearchOffsets::ring_layout`]: an array of pointers to `io_rsrc_node` (6.13).
pub const RING_NODES: u32 = 2;

offsets! {
    /// Byte offsets of structure members of the running kernel. Members of a place that cannot be
    /// searched are 0.
    SearchOffsets:
    /// 1 where unix sockets can be searched.
    has_sockets,
    /// 1 where mappings can be searched.
    has_mappings,
    /// How a ring keeps its registered files: one of the `RING_` constants.
    ring_layout,
    /// `inode.i_mode`
    inode_mode,
    /// `super_block.s_magic`
    sb_magic,
    /// `file.private_data`
    file_private,
    /// `socket.sk`
    socket_sk,
    /// `socket.file`
    socket_file,
    /// `sock.__sk_common.skc_family`
    sock_family,
    /// `sock.__sk_common.skc_state`
    sock_state,
    /// `sock.sk_socket`
    sock_socket,
    /// `sock.sk_receive_queue`
    sock_queue,
    /// `sk_buff.next`
    skb_next,
    /// `sk_buff.prev`
    skb_prev,
    /// `sk_buff.sk`
    skb_sk,
    /// `sk_buff.cb`, and in it `unix_skb_parms.fp`
    skb_files,
    /// `scm_fp_list.count`
    scm_count,
    /// `scm_fp_list.fp`
    scm_files,
    /// `unix_sock.addr`
    unix_address,
    /// `unix_address.len`
    address_len,
    /// `unix_address.name`, and in it `sockaddr_un.sun_path`
    address_path,
    /// The array of a ring's registered files, from `io_ring_ctx` on.
    ring_files,
    /// The number of its entries, from `io_ring_ctx` on.
    ring_count,
    /// `io_rsrc_node.file_ptr`
    node_file,
    /// `vm_area_struct.vm_file`
    vma_file,
    /// `vm_area_struct.vm_start`
    vma_start,
    /// `vm_area_struct.vm_end`
    vma_end,
    /// `vm_area_struct.vm_flags`
    vma_flags,
    /// 1 where it can be told whether a file is mapped at all.
    has_mapped,
    /// `file.f_mapping`
    file_mapping,
    /// The root of the tree of mappings in `address_space.i_mmap`.
    mapping_root,
}

const _: () = assert!(size_of::<SearchOffsets>() == SearchOffsets::WORDS * 4);
