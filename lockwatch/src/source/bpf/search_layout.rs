//! From the running kernel's type information to the offsets that a search uses.
//!
//! Refuses to fail as a whole: a structure that a kernel lacks, or shapes in a way that is not
//! known here, is one place less to look in, and the reason is kept.

use lockwatch_common::search_offsets::{RING_NODES, RING_UNKNOWN, RING_WORDS, SearchOffsets};

use super::btf::Btf;
use crate::engine::snapshot::Via;

/// What a kernel allows to be searched.
#[derive(Debug)]
pub struct SearchLayout {
    /// The table for the programs.
    pub offsets: SearchOffsets,
    /// Kinds of places that cannot be searched, and why.
    pub gaps: Vec<(Via, String)>,
}

/// A member that the kernel's types lack.
type Absent = String;

/// Looks everything up.
pub fn search_layout(btf: &Btf<'_>) -> SearchLayout {
    let mut offsets = SearchOffsets::ZERO;
    let mut gaps = Vec::new();
    type Part = fn(&Btf<'_>, &mut SearchOffsets) -> Result<(), Absent>;
    let parts: [(Via, Part); 3] =
        [(Via::ScmRights, sockets), (Via::IoUring, rings), (Via::Mmap, mappings)];
    for (via, part) in parts {
        let mut with = offsets;
        match anchors(btf, &mut with).and_then(|()| part(btf, &mut with)) {
            Ok(()) => offsets = with,
            Err(absent) => gaps.push((via, format!("this kernel's types have no {absent}"))),
        }
    }
    SearchLayout { offsets, gaps }
}

fn of(btf: &Btf<'_>, structure: &str, path: &str) -> Result<u32, Absent> {
    btf.offset_of(structure, path).ok_or_else(|| format!("{structure}.{path}"))
}

/// By which sockets and rings are known.
fn anchors(btf: &Btf<'_>, offsets: &mut SearchOffsets) -> Result<(), Absent> {
    offsets.inode_mode = of(btf, "inode", "i_mode")?;
    offsets.sb_magic = of(btf, "super_block", "s_magic")?;
    offsets.file_private = of(btf, "file", "private_data")?;
    Ok(())
}

fn sockets(btf: &Btf<'_>, offsets: &mut SearchOffsets) -> Result<(), Absent> {
    let of = |structure, path| of(btf, structure, path);
    offsets.socket_sk = of("socket", "sk")?;
    offsets.socket_file = of("socket", "file")?;
    offsets.sock_family = of("sock", "__sk_common.skc_family")?;
    offsets.sock_state = of("sock", "__sk_common.skc_state")?;
    offsets.sock_socket = of("sock", "sk_socket")?;
    offsets.sock_queue = of("sock", "sk_receive_queue")?;
    offsets.skb_next = of("sk_buff", "next")?;
    offsets.skb_prev = of("sk_buff", "prev")?;
    // A queue's head and a buffer are walked alike.
    if (of("sk_buff_head", "next")?, of("sk_buff_head", "prev")?)
        != (offsets.skb_next, offsets.skb_prev)
    {
        return Err("sk_buff_head that begins as sk_buff does".to_owned());
    }
    offsets.skb_sk = of("sk_buff", "sk")?;
    offsets.skb_files = of("sk_buff", "cb")? + of("unix_skb_parms", "fp")?;
    offsets.scm_count = of("scm_fp_list", "count")?;
    offsets.scm_files = of("scm_fp_list", "fp")?;
    offsets.unix_address = of("unix_sock", "addr")?;
    offsets.address_len = of("unix_address", "len")?;
    // `sun_path` follows the two bytes of the address family (unix(7)).
    offsets.address_path = of("unix_address", "name")? + 2;
    offsets.has_sockets = 1;
    Ok(())
}

fn rings(btf: &Btf<'_>, offsets: &mut SearchOffsets) -> Result<(), Absent> {
    let of = |structure, path| of(btf, structure, path);
    offsets.ring_layout = RING_UNKNOWN;
    let table = of("io_ring_ctx", "file_table")?;
    if btf.offset_of("io_file_table", "data").is_some() {
        // 6.13: an array of pointers to nodes.
        let data = table + of("io_file_table", "data")?;
        offsets.ring_files = data + of("io_rsrc_data", "nodes")?;
        offsets.ring_count = data + of("io_rsrc_data", "nr")?;
        offsets.node_file = of("io_rsrc_node", "file_ptr")?;
        offsets.ring_layout = RING_NODES;
        return Ok(());
    }
    // 5.15: an array of words. In 5.13 and 5.14 it was an array of arrays.
    let files = of("io_file_table", "files")?;
    if btf.pointers_of("io_file_table", "files") != Some(1)
        || btf.size_of("io_fixed_file") != Some(8)
    {
        return Err("table of registered files in a known shape".to_owned());
    }
    offsets.ring_files = table + files;
    offsets.ring_count = of("io_ring_ctx", "nr_user_files")?;
    offsets.ring_layout = RING_WORDS;
    Ok(())
}

fn mappings(btf: &Btf<'_>, offsets: &mut SearchOffsets) -> Result<(), Absent> {
    let of = |structure, path| of(btf, structure, path);
    if !btf.has_structure("bpf_iter__task_vma") {
        return Err("iterator of mappings (5.12)".to_owned());
    }
    offsets.vma_file = of("vm_area_struct", "vm_file")?;
    offsets.vma_start = of("vm_area_struct", "vm_start")?;
    offsets.vma_end = of("vm_area_struct", "vm_end")?;
    offsets.vma_flags = of("vm_area_struct", "vm_flags")?;
    offsets.has_mappings = 1;
    // Without, mappings are searched whenever anything is.
    if let (Ok(mapping), Ok(root)) =
        (of("file", "f_mapping"), of("address_space", "i_mmap.rb_root.rb_node"))
    {
        (offsets.file_mapping, offsets.mapping_root) = (mapping, root);
        offsets.has_mapped = 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! fixture {
        ($version:literal) => {
            (
                $version,
                include_bytes!(concat!("../../../../tests/fixtures/btf/", $version, ".btf"))
                    as &[u8],
            )
        };
    }

    fn layout_of(bytes: &[u8]) -> SearchLayout {
        search_layout(&Btf::parse(bytes).expect("the fixture is BTF"))
    }

    #[test]
    fn every_kernel_of_the_matrix_can_be_searched_but_for_mappings_on_5_10() {
        let kernels = [
            fixture!("5.10"),
            fixture!("6.1"),
            fixture!("6.12"),
            fixture!("6.18"),
            fixture!("7.2"),
        ];
        for (version, bytes) in kernels {
            let SearchLayout { offsets, gaps } = layout_of(bytes);
            assert_eq!(offsets.has_sockets, 1, "{version}");
            let shape = if matches!(version, "6.18" | "7.2") { RING_NODES } else { RING_WORDS };
            assert_eq!(offsets.ring_layout, shape, "{version}");
            let lacks: Vec<Via> = gaps.iter().map(|(via, _)| *via).collect();
            assert_eq!(
                lacks,
                if version == "5.10" { vec![Via::Mmap] } else { vec![] },
                "{version}"
            );
        }
    }

    #[test]
    fn offsets_are_those_that_another_reader_of_btf_tells() {
        let (_, bytes) = fixture!("7.2");
        let found = layout_of(bytes).offsets;
        // Bits in 7.2.txt: sk_receive_queue 1344, sk_socket 2304, cb 320 + fp 128, fp[] 320,
        // unix_sock.addr 6400, file_table 1152 + nodes 64, file_ptr 128, vm_file 704.
        assert_eq!(found.sock_queue, 1344 / 8);
        assert_eq!(found.sock_socket, 2304 / 8);
        assert_eq!(found.skb_files, (320 + 128) / 8);
        assert_eq!(found.scm_files, 320 / 8);
        assert_eq!(found.unix_address, 6400 / 8);
        assert_eq!((found.ring_files, found.ring_count), ((1152 + 64) / 8, 1152 / 8));
        assert_eq!(found.node_file, 128 / 8);
        assert_eq!(found.vma_file, 704 / 8);
    }

    #[test]
    fn a_structure_that_is_absent_costs_one_place_and_says_so() {
        let (_, bytes) = fixture!("6.12");
        let mut bytes = bytes.to_vec();
        let name = b"\0unix_skb_parms\0";
        let at = bytes.windows(name.len()).position(|window| window == name);
        bytes[at.expect("6.12 has it") + 1] = b'x';
        let SearchLayout { offsets, gaps } = layout_of(&bytes);
        assert_eq!((offsets.has_sockets, offsets.ring_layout), (0, RING_WORDS));
        let told = "this kernel's types have no unix_skb_parms.fp".to_owned();
        assert_eq!(gaps, [(Via::ScmRights, told)]);
    }
}
