//! The kernel as we boot it, out of the file that Debian ships: on x86 the ELF image inside a bzImage, because a VMM
//! enters that directly by PVH and no emulated CPU has to decompress it (0.6 s of a boot under TCG). Called by the builder.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use object::Endianness;
use object::elf::{EM_AARCH64, EM_X86_64, FileHeader64, NoteType, PT_INTERP, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::arch::Architecture;

type Elf = FileHeader64<Endianness>;

/// A vmlinux is about 60 MB; a payload that unpacks to more is none.
const LIMIT: u64 = 256 << 20;

/// Makes what the VMM loads.
pub(super) fn bootable(architecture: Architecture, shipped: &[u8]) -> Result<Vec<u8>> {
    match architecture {
        Architecture::X86_64 => {
            let vmlinux = decompress(payload(shipped)?)?;
            check_pvh(&vmlinux)?;
            Ok(vmlinux)
        }
        Architecture::Aarch64 => {
            ensure!(
                is_arm_image(shipped),
                "The kernel has neither the magic of an Arm Image nor that of an EFI zboot"
            );
            Ok(shipped.to_vec())
        }
    }
}

/// Checks that a program runs without a dynamic linker, which the guest does not have.
pub(super) fn check_static(architecture: Architecture, program: &[u8]) -> Result<()> {
    let machine = match architecture {
        Architecture::X86_64 => EM_X86_64,
        Architecture::Aarch64 => EM_AARCH64,
    };
    let (header, endian) = elf(program, machine)?;
    let segments = header.program_headers(endian, program).context("Its program headers are damaged")?;
    let interpreted = segments.iter().any(|segment| segment.p_type(endian) == PT_INTERP);
    ensure!(!interpreted, "It is linked dynamically; build it with `-C target-feature=+crt-static`");
    Ok(())
}

/// The compressed part of a bzImage. Offsets are those of the setup header in the kernel's Documentation/arch/x86/boot.rst.
fn payload(image: &[u8]) -> Result<&[u8]> {
    const SETUP_SECTORS: usize = 0x1f1;
    const MAGIC: usize = 0x202;
    const VERSION: usize = 0x206;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24c;
    const SECTOR: usize = 512;

    ensure!(
        image.get(MAGIC..MAGIC + 4) == Some(b"HdrS"),
        "The kernel is no bzImage: its setup header is missing"
    );
    let version = u16::from_le_bytes(bytes_at(image, VERSION)?);
    ensure!(
        version >= 0x208,
        "The kernel's boot protocol {version:#x} is older than 2.08 and names no payload"
    );
    let sectors = match bytes_at::<1>(image, SETUP_SECTORS)? {
        [0] => 4,
        [sectors] => usize::from(sectors),
    };
    let offset = u32::from_le_bytes(bytes_at(image, PAYLOAD_OFFSET)?) as usize;
    let length = u32::from_le_bytes(bytes_at(image, PAYLOAD_LENGTH)?) as usize;
    let start = (sectors + 1) * SECTOR + offset;
    image.get(start..start.saturating_add(length)).with_context(|| {
        format!("The kernel is cut off: its payload of {length} bytes at {start} goes past its end")
    })
}

/// Unpacks by the magic at the start. The kernel's build appends the unpacked size, which the zstd and xz readers
/// must not take for another frame.
fn decompress(payload: &[u8]) -> Result<Vec<u8>> {
    let (packed, size) = payload.split_last_chunk::<4>().context("The kernel's payload is empty")?;
    let size = u64::from(u32::from_le_bytes(*size));
    ensure!(size <= LIMIT, "The kernel's payload claims to unpack to {size} bytes");
    let mut unpacked = Vec::new();
    let read = if packed.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        zstd::Decoder::new(packed)?.single_frame().take(LIMIT).read_to_end(&mut unpacked)
    } else if packed.starts_with(b"\xfd7zXZ\0") {
        liblzma::read::XzDecoder::new(packed).take(LIMIT).read_to_end(&mut unpacked)
    } else {
        let magic = packed.get(..6).unwrap_or(packed);
        bail!("The kernel's payload starts with {magic:02x?}, which is neither zstd nor xz");
    };
    read.context("The kernel's payload is damaged")?;
    ensure!(
        unpacked.len() as u64 == size,
        "The kernel's payload unpacked to {} bytes instead of {size}",
        unpacked.len()
    );
    Ok(unpacked)
}

/// Checks for the ELF note that tells a VMM the 32-bit entry point of PVH.
fn check_pvh(vmlinux: &[u8]) -> Result<()> {
    /// XEN_ELFNOTE_PHYS32_ENTRY of Xen's public headers.
    const PHYS32_ENTRY: NoteType = NoteType(18);
    let (header, endian) = elf(vmlinux, EM_X86_64)?;
    for segment in
        header.program_headers(endian, vmlinux).context("The kernel's program headers are damaged")?
    {
        if segment.p_type(endian) != PT_NOTE {
            continue;
        }
        let Some(mut notes) = segment.notes(endian, vmlinux).context("The kernel's notes are damaged")?
        else {
            continue;
        };
        while let Some(note) = notes.next().context("The kernel's notes are damaged")? {
            if note.name() == b"Xen" && note.n_type(endian) == PHYS32_ENTRY {
                return Ok(());
            }
        }
    }
    bail!("The kernel has no PVH entry point (CONFIG_PVH)")
}

fn elf(bytes: &[u8], machine: object::elf::Machine) -> Result<(&Elf, Endianness)> {
    let header = Elf::parse(bytes).context("It is no 64-bit ELF file")?;
    let endian = header.endian().context("Its byte order is unknown")?;
    let is = header.e_machine(endian);
    ensure!(is == machine, "It is for another machine (ELF {is:?} instead of {machine:?})");
    Ok((header, endian))
}

/// A plain Image has its magic in the 56th byte (Documentation/arch/arm64/booting.rst), a zboot image in the 4th; QEMU
/// and Cloud Hypervisor know both.
fn is_arm_image(image: &[u8]) -> bool {
    image.get(56..60) == Some(b"ARM\x64") || image.get(4..8) == Some(b"zimg")
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .context("The kernel is cut off in its setup header")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage whose payload, one sector into the protected-mode part, holds `packed`.
    fn bzimage(packed: &[u8], unpacked: usize) -> Vec<u8> {
        let mut image = vec![0; 3 * 512];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&512_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(packed.len() + 4).unwrap().to_le_bytes());
        image.extend_from_slice(packed);
        image.extend_from_slice(&u32::try_from(unpacked).unwrap().to_le_bytes());
        image.extend_from_slice(b"what follows the payload");
        image
    }

    #[test]
    fn a_payload_is_found_and_unpacked_whatever_packed_it() {
        let text = b"a kernel".repeat(1000);
        let zstd = zstd::encode_all(&text[..], 3).unwrap();
        let mut xz = Vec::new();
        liblzma::read::XzEncoder::new(&text[..], 3).read_to_end(&mut xz).unwrap();
        for packed in [zstd, xz] {
            assert_eq!(decompress(payload(&bzimage(&packed, text.len())).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn damaged_images_are_refused_with_what_is_wrong() {
        let packed = zstd::encode_all(&b"a kernel"[..], 3).unwrap();
        let good = bzimage(&packed, 8);
        let mut cut = good.clone();
        cut.truncate(good.len() - 40);
        let error = payload(&cut).unwrap_err().to_string();
        assert!(error.contains("cut off"), "{error}");

        let error = payload(b"MZ").unwrap_err().to_string();
        assert!(error.contains("no bzImage"), "{error}");

        let error = decompress(payload(&bzimage(&packed, 9)).unwrap()).unwrap_err().to_string();
        assert!(error.contains("8 bytes instead of 9"), "{error}");

        let error = decompress(payload(&bzimage(b"LZ4?????", 8)).unwrap()).unwrap_err().to_string();
        assert!(error.contains("neither zstd nor xz"), "{error}");

        let error = bootable(Architecture::X86_64, &good).unwrap_err();
        assert!(format!("{error:#}").contains("no 64-bit ELF"), "{error:#}");
    }

    #[test]
    fn arm_kernels_are_known_by_their_magic() {
        let mut image = vec![0; 64];
        image[56..60].copy_from_slice(b"ARM\x64");
        assert_eq!(bootable(Architecture::Aarch64, &image).unwrap(), image);
        assert!(bootable(Architecture::Aarch64, &[0; 64]).is_err());
    }

    #[test]
    fn a_dynamic_program_can_not_be_the_agent() {
        let dynamic = std::fs::read("/bin/sh").unwrap();
        let host = Architecture::host().unwrap();
        let error = check_static(host, &dynamic).unwrap_err().to_string();
        assert!(error.contains("crt-static"), "{error}");
        let other = if host == Architecture::X86_64 { Architecture::Aarch64 } else { Architecture::X86_64 };
        let error = check_static(other, &dynamic).unwrap_err().to_string();
        assert!(error.contains("another machine"), "{error}");
    }
}
