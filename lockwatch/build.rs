fn main() {
    let out = std::env::var("OUT_DIR").unwrap();
    println!("cargo:rerun-if-changed=../target/bpf/lockwatch.bpf.o");
    std::fs::copy("../target/bpf/lockwatch.bpf.o", format!("{out}/lockwatch.bpf.o")).unwrap();
}
