//! The binary: argv in, exit code out.

fn main() {
    let t = std::time::Instant::now();
    let it = lockwatch::source::bpf::TaskFileIterator::load().unwrap();
    eprintln!("load {:?}", t.elapsed());
    let t = std::time::Instant::now();
    let mut n = 0;
    let s = it
        .read(|r| {
            n += 1;
            if n < 30 {
                match r {
                    lockwatch::source::bpf::record::Record::Inode(i, p) => {
                        eprintln!("{i:?} {}", String::from_utf8_lossy(p))
                    }
                    r => eprintln!("{r:?}"),
                }
            }
        })
        .unwrap();
    eprintln!("{n} {s:?} {:?}", t.elapsed());
}
