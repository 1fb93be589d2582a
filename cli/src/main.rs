//! The command line tool `weir`.

fn main() -> anyhow::Result<()> {
    anyhow::bail!("not there yet")
}
