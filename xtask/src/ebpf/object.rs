//! What is inside an object: dropping what the kernel does not need, comparing what it does.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya_obj::{Map, Object};
use object::build::elf::{Builder, SectionData};
use object::elf::{SHF_ALLOC, SHT_STRTAB};

/// The shape of one map, or of the maps inside it.
#[derive(Debug, PartialEq)]
struct Layout {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    inner: Option<Box<Layout>>,
}

/// The object without DWARF. BTF, its line information and the maps stay.
pub(super) fn without_debug_sections(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(bytes).context("reading the object")?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        let name = name.strip_prefix(b".rel").unwrap_or(name);
        section.delete = name.starts_with(b".debug_");
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections and of symbols in one table, the builder wants two.
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut smaller = Vec::new();
    builder.write(&mut smaller).context("writing the object")?;
    Ok(smaller)
}

/// Demands that an object keeps nothing in memory but its maps: constants and variables become maps that
/// the loader does not make, and programs that use them are refused when somebody loads them.
pub(super) fn refuse_data(bytes: &[u8]) -> Result<()> {
    const DATA: [&[u8]; 3] = [b".rodata", b".data", b".bss"];
    let builder = Builder::read(bytes).context("reading the object")?;
    for section in &builder.sections {
        let is_data = DATA.iter().any(|name| section.name.starts_with(name));
        ensure!(
            !is_data || section.sh_flags & u64::from(SHF_ALLOC) == 0,
            "it has a section {}, which is no map of ours: a choice among constants has become a \
             table, as happens in functions out of line (ARCHITECTURE.md, BPF rules)",
            section.name
        );
    }
    Ok(())
}

/// Demands that two objects have the same programs, and maps of the same shape.
pub(super) fn compare_layouts(left: &Path, right: &Path) -> Result<()> {
    let (left_maps, left_programs) = read(left)?;
    let (right_maps, right_programs) = read(right)?;
    ensure!(
        left_maps == right_maps,
        "the maps differ:\n{}: {left_maps:#?}\n{}: {right_maps:#?}",
        left.display(),
        right.display()
    );
    ensure!(
        left_programs == right_programs,
        "the programs differ:\n{}: {left_programs:?}\n{}: {right_programs:?}",
        left.display(),
        right.display()
    );
    Ok(())
}

/// The maps and programs of an object, by name.
fn read(file: &Path) -> Result<(BTreeMap<String, Layout>, BTreeMap<String, String>)> {
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let object = Object::parse(&bytes).with_context(|| format!("parsing {}", file.display()))?;
    let maps = object.maps.into_iter().map(|(name, map)| (name, layout(&map))).collect();
    let programs = object.programs.into_iter();
    let programs = programs.map(|(name, program)| (name, format!("{:?}", program.section)));
    Ok((maps, programs.collect()))
}

fn layout(map: &Map) -> Layout {
    Layout {
        map_type: map.map_type(),
        key_size: map.key_size(),
        value_size: map.value_size(),
        max_entries: map.max_entries(),
        inner: map.inner().map(|inner| Box::new(layout(&inner))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_in_memory_are_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/rlvs-ebpf/object");
        let bytes = fs::read(folder.join("rlvs.bpf.o")).expect("the committed object");
        refuse_data(&bytes).expect("it has none");
        for name in [".rodata", ".rodata.cst32", ".data", ".bss"] {
            let mut builder = Builder::read(bytes.as_slice()).expect("the object is read");
            let maps = builder.sections.iter_mut().find(|section| &*section.name == b".maps");
            maps.expect("its maps").name = name.as_bytes().into();
            let mut changed = Vec::new();
            builder.write(&mut changed).expect("the object is written");
            let error = refuse_data(&changed).expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
