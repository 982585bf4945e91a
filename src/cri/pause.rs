//! Holm's own sandbox ("pause") image: a program of a few machine instructions in an image of one
//! layer, made from nothing in memory, so that a board without a registry runs its first pod.
//!
//! The program does what a sandbox's first process must: it ignores SIGCHLD, which makes the
//! kernel reap orphans of a pod that shares its process namespace, and sleeps until it is killed.

use super::image::Image;

/// The image's name in the runtime when no other is wanted.
pub const NAME: &str = "holm.dev/pause:1";

/// A processor that the image can be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
    /// 32-bit ARM, version 6 and later.
    Arm,
}

impl Arch {
    /// The processor this binary was built for; `None` where no pause program is known.
    pub const fn own() -> Option<Arch> {
        if cfg!(target_arch = "x86_64") {
            Some(Arch::Amd64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Arch::Arm64)
        } else if cfg!(target_arch = "arm") {
            Some(Arch::Arm)
        } else {
            None
        }
    }

    /// The name in image configurations (GOARCH).
    pub fn name(self) -> &'static str {
        match self {
            Arch::Amd64 => "amd64",
            Arch::Arm64 => "arm64",
            Arch::Arm => "arm",
        }
    }

    /// `rt_sigaction(SIGCHLD, &act, NULL, 8)`, then `pause()` for ever. `act` follows the code.
    fn code(self) -> &'static [u8] {
        match self {
            Arch::Amd64 => &[
                0x48, 0x8d, 0x35, 0x1d, 0, 0, 0, // lea act(%rip), %rsi
                0xbf, 17, 0, 0, 0, // mov $SIGCHLD, %edi
                0x31, 0xd2, // xor %edx, %edx
                0x41, 0xba, 8, 0, 0, 0, // mov $8, %r10d: size of a signal set
                0xb8, 13, 0, 0, 0, // mov $rt_sigaction, %eax
                0x0f, 0x05, // syscall
                0xb8, 34, 0, 0, 0, // again: mov $pause, %eax
                0x0f, 0x05, // syscall
                0xeb, 0xf7, // jmp again
            ],
            Arch::Arm64 => &[
                0xa1, 0x01, 0x00, 0x10, // adr x1, act
                0x20, 0x02, 0x80, 0xd2, // mov x0, #SIGCHLD
                0x02, 0x00, 0x80, 0xd2, // mov x2, #0
                0x03, 0x01, 0x80, 0xd2, // mov x3, #8
                0xc8, 0x10, 0x80, 0xd2, // mov x8, #rt_sigaction (134)
                0x01, 0x00, 0x00, 0xd4, // svc #0
                0x00, 0x00, 0x80, 0xd2, // again: mov x0, #0
                0x01, 0x00, 0x80, 0xd2, // mov x1, #0
                0x02, 0x00, 0x80, 0xd2, // mov x2, #0
                0x03, 0x00, 0x80, 0xd2, // mov x3, #0
                0x28, 0x09, 0x80, 0xd2, // mov x8, #ppoll (73); there is no pause here
                0x01, 0x00, 0x00, 0xd4, // svc #0
                0xfa, 0xff, 0xff, 0x17, // b again
            ],
            Arch::Arm => &[
                0x1c, 0x10, 0x8f, 0xe2, // add r1, pc, #28: act
                0x11, 0x00, 0xa0, 0xe3, // mov r0, #SIGCHLD
                0x00, 0x20, 0xa0, 0xe3, // mov r2, #0
                0x08, 0x30, 0xa0, 0xe3, // mov r3, #8
                0xae, 0x70, 0xa0, 0xe3, // mov r7, #rt_sigaction (174)
                0x00, 0x00, 0x00, 0xef, // svc 0
                0x1d, 0x70, 0xa0, 0xe3, // again: mov r7, #pause (29)
                0x00, 0x00, 0x00, 0xef, // svc 0
                0xfc, 0xff, 0xff, 0xea, // b again
            ],
        }
    }
}

/// The kernel's `struct sigaction` on all three: the handler word first, SIG_IGN = 1, then zeros.
const ACT: [u8; 32] = {
    let mut act = [0; 32];
    act[0] = 1;
    act
};

/// The pause program: a static executable of one read-execute segment.
pub fn program(arch: Arch) -> Vec<u8> {
    let mut out = vec![0x7f, b'E', b'L', b'F'];
    let wide = arch != Arch::Arm;
    // class, little endian, version, System V, padding
    out.extend([if wide { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let (machine, flags, base): (u16, u32, u32) = match arch {
        Arch::Amd64 => (62, 0, 0x40_0000),
        Arch::Arm64 => (183, 0, 0x40_0000),
        Arch::Arm => (40, 0x0500_0000, 0x1_0000), // EABI version 5
    };
    let (header, program_header): (u16, u16) = if wide { (64, 56) } else { (52, 32) };
    let start = u32::from(header) + u32::from(program_header);
    let code = arch.code();
    let padding = code.len().next_multiple_of(4) - code.len();
    let size = start + (code.len() + padding + ACT.len()) as u32;
    // An address or offset: 8 bytes in a wide file, 4 in a narrow one.
    let word = |out: &mut Vec<u8>, value: u32| {
        out.extend(value.to_le_bytes());
        if wide {
            out.extend([0; 4]);
        }
    };
    out.extend(2u16.to_le_bytes()); // executable
    out.extend(machine.to_le_bytes());
    out.extend(1u32.to_le_bytes()); // version
    word(&mut out, base + start); // entry
    word(&mut out, header.into()); // program headers follow this header
    word(&mut out, 0); // no section headers
    out.extend(flags.to_le_bytes());
    for half in [header, program_header, 1, 0, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    const LOAD: u32 = 1;
    const READ_EXECUTE: u32 = 5;
    out.extend(LOAD.to_le_bytes());
    if wide {
        out.extend(READ_EXECUTE.to_le_bytes());
    }
    word(&mut out, 0); // from the start of the file
    word(&mut out, base);
    word(&mut out, base);
    word(&mut out, size);
    word(&mut out, size);
    if !wide {
        out.extend(READ_EXECUTE.to_le_bytes());
    }
    word(&mut out, 0x1_0000); // alignment: the largest page size there is
    out.extend(code);
    out.extend(std::iter::repeat_n(0, padding));
    out.extend(ACT);
    out
}

/// The image of [`program`] for `arch`.
pub fn image(arch: Arch) -> Image {
    Image::of_program(arch, "/pause", &program(arch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    /// Runs a program directly, or, where it is another processor's or this test itself runs in
    /// a user-mode emulator, in that processor's emulator.
    fn spawn(arch: Arch, path: &std::path::Path) -> Option<std::process::Child> {
        let spawn = |program: &std::ffi::OsStr, args: &[&std::path::Path]| {
            Command::new(program).args(args).stdin(Stdio::null()).spawn()
        };
        if Arch::own() == Some(arch)
            && let Ok(child) = spawn(path.as_os_str(), &[])
        {
            return Some(child);
        }
        let name = match arch {
            Arch::Amd64 => "x86_64",
            Arch::Arm64 => "aarch64",
            Arch::Arm => "arm",
        };
        let emulators = [format!("qemu-{name}-static"), format!("qemu-{name}")];
        emulators.iter().find_map(|e| spawn(e.as_ref(), &[path]).ok())
    }

    fn sleeps_until_it_is_killed(arch: Arch) {
        use std::os::unix::fs::PermissionsExt as _;
        use std::os::unix::process::ExitStatusExt as _;
        let name = arch.name();
        let folder = std::env::temp_dir().join(format!("holm-pause-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("pause");
        std::fs::write(&path, program(arch)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let Some(mut child) = spawn(arch, &path) else {
            std::fs::remove_dir_all(&folder).unwrap();
            // Another processor's is tried where its emulator is; this one's always.
            if Arch::own() == Some(arch) {
                println!("SKIPPED: the pause program of {name}: qemu-user-static");
            }
            return;
        };
        let status = format!("/proc/{}/status", child.id());
        let slept = smol::block_on(async {
            for _ in 0..100 {
                smol::Timer::after(Duration::from_millis(20)).await;
                if child.try_wait().unwrap().is_some() {
                    return false;
                }
                let status = std::fs::read_to_string(&status).unwrap();
                let of = |key| status.lines().find_map(|l| l.strip_prefix(key)).unwrap().trim();
                let ignored = u64::from_str_radix(of("SigIgn:"), 16).unwrap();
                if of("State:").starts_with('S') && ignored & (1 << 16) != 0 {
                    return true;
                }
            }
            false
        });
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(slept, "{name}: asleep with SIGCHLD ignored within two seconds; {ended}");
        assert_eq!(ended.signal(), Some(9), "{name}: it only ends by being killed");
    }

    #[test]
    fn the_program_sleeps_until_it_is_killed() {
        for arch in [Arch::Amd64, Arch::Arm64, Arch::Arm] {
            sleeps_until_it_is_killed(arch);
        }
    }

    #[test]
    fn entry_points_lie_where_the_code_is() {
        let wide = program(Arch::Arm64);
        assert_eq!(&wide[24..32], &(0x40_0000u64 + 120).to_le_bytes());
        assert_eq!(&wide[120..124], &[0xa1, 0x01, 0x00, 0x10]);
        let narrow = program(Arch::Arm);
        assert_eq!(&narrow[24..28], &(0x1_0000u32 + 84).to_le_bytes());
        assert_eq!(&narrow[84..88], &[0x1c, 0x10, 0x8f, 0xe2]);
        for arch in [Arch::Amd64, Arch::Arm64, Arch::Arm] {
            let program = program(arch);
            assert_eq!(&program[program.len() - 32..], &ACT);
        }
    }
}
