//! The files that servers read by their own configuration: nginx and PostgreSQL.

use super::launch::{Process, Program};
use super::loader::globbed;
use super::system;
use super::view::{join, parent};
use super::walk::Walk;
use estargz::toc::Kind;

/// Most files of one server's configuration.
const MAX_CONFIGURATION: usize = 256;
/// The compiled-in path of nginx's configuration (Debian's and nginx's own packages).
const NGINX: &str = "/etc/nginx/nginx.conf";
/// Directories of modules with relative paths (Debian's packages; nginx's own have a link in the
/// first to the third).
const NGINX_PREFIXES: &[&str] = &["/etc/nginx", "/usr/share/nginx", "/usr/lib/nginx"];
/// The directives whose value is a file that is read at start.
const NGINX_FILES: &[&str] = &[
    "auth_basic_user_file",
    "ssl_certificate",
    "ssl_certificate_key",
    "ssl_dhparam",
    "ssl_password_file",
    "ssl_trusted_certificate",
];
/// Most files of one directory of a cluster.
const MAX_DATABASE: usize = 256;
/// The parts of a PostgreSQL cluster that a start reads, in its order. A directory means all files
/// in it.
const CLUSTER: &[&str] = &[
    "PG_VERSION",
    "postgresql.conf",
    "postgresql.auto.conf",
    "global/pg_control",
    "pg_hba.conf",
    "pg_ident.conf",
    "pg_wal",
    "pg_logical/replorigin_checkpoint",
    "pg_stat/pgstat.stat",
    "pg_xact",
    "pg_subtrans",
    "pg_multixact/offsets",
    "pg_multixact/members",
];
/// The tables shared by all databases that the first session reads, by their fixed numbers
/// (PostgreSQL, `src/include/catalog`): databases, subscriptions, roles and their settings.
const GLOBAL: &[&str] = &[
    "pg_filenode.map",
    "pg_internal.init",
    "1262",
    "6100",
    "1260",
    "2671",
    "2672",
    "2676",
    "2965",
];
/// The same for the tables of one database: classes, attributes, types, procedures, indexes, access
/// methods and operator classes, and the indexes on them.
const DATABASE: &[&str] = &[
    "PG_VERSION",
    "pg_filenode.map",
    "pg_internal.init",
    "1259",
    "1249",
    "2610",
    "2601",
    "2616",
    "2603",
    "2687",
    "2655",
    "2662",
    "2659",
    "2679",
    "2703",
    "1247",
    "1255",
    "2690",
];
/// The template databases, which others are copied from. Sessions do not use them.
const TEMPLATES: &[&str] = &["1", "4"];

/// Runs nginx.
pub(super) fn nginx(walk: &mut Walk<'_>, process: &Process, mut program: Program) {
    let fuel = walk.fuel.clone();
    let option = fuel
        .each(&process.argv)
        .skip_while(|word| *word != "-c")
        .nth(1);
    let main = option.map_or(NGINX.to_owned(), |path| join(parent(NGINX), path));
    let base = parent(&main).to_owned();
    let mut left = vec![main];
    let mut roots = Vec::new();
    let mut seen = 0;
    while let Some(path) = left.pop().filter(|_| fuel.burn(1)) {
        let Some(file) = walk.view.file(&path).filter(|_| seen < MAX_CONFIGURATION) else {
            continue;
        };
        if !walk.name(&file) {
            continue;
        }
        seen += 1;
        let text = walk.text(&file);
        let mut included = Vec::new();
        for (directive, value) in fuel.each(directives(&text)) {
            match directive {
                "include" => included.extend(globbed(walk, &join(&base, value))),
                "load_module" => {
                    let places = NGINX_PREFIXES.iter().map(|prefix| join(prefix, value));
                    if let Some(module) = places.into_iter().find_map(|path| walk.view.file(&path))
                    {
                        program.loader.open(walk, &module);
                    }
                }
                "root" => roots.push(fuel.copy(value)),
                name if NGINX_FILES.contains(&name) => drop(walk.name_path(&join(&base, value))),
                _ => {}
            }
        }
        left.extend(included.into_iter().rev());
    }
    system::name_users(walk);
    // The first request is probably for the root.
    for root in fuel.each(roots) {
        walk.name_path(&join(&root, "index.html"));
    }
}

/// Returns the directives of a configuration and their first values.
fn directives(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    lines
        .flat_map(|line| line.split([';', '{', '}']))
        .filter_map(|statement| {
            let (name, value) = statement.trim().split_once([' ', '\t'])?;
            Some((name, value.trim().trim_matches(['"', '\''])))
        })
}

/// Runs PostgreSQL.
pub(super) fn postgres(walk: &mut Walk<'_>, process: &Process, program: &Program) {
    let fuel = walk.fuel.clone();
    let mut data = process.variable("PGDATA").map(str::to_owned);
    let mut words = fuel.each(process.argv.iter().skip(1));
    while let Some(word) = words.next() {
        match word.strip_prefix("-D") {
            Some("") => data = words.next().cloned().or(data),
            Some(path) => data = Some(path.to_owned()),
            None => {}
        }
        if let Some(path) = word.strip_prefix("config_file=") {
            walk.name_path(&process.absolute(path));
        }
    }
    let Some(data) = data.map(|path| process.absolute(&path)) else {
        return;
    };
    for share in share(program) {
        walk.name_path(&join(&share, "timezonesets/Default"));
    }
    system::name_time_zone(walk, process);
    for path in CLUSTER.iter().map(|path| join(&data, path)) {
        if walk.name_path(&path).is_none() {
            name_all(walk, &path);
        }
    }
    let databases = fuel.each(walk.view.names(&join(&data, "base")));
    let databases = databases
        .filter(|name| !TEMPLATES.contains(&name.as_str()))
        .map(|name| format!("base/{name}"));
    let tables = DATABASE.iter();
    let shared = GLOBAL.iter().map(|table| format!("global/{table}"));
    let own = databases
        .take(MAX_DATABASE)
        .flat_map(|base| tables.clone().map(move |table| format!("{base}/{table}")));
    for path in fuel.each(shared.chain(own)) {
        walk.name_path(&join(&data, &path));
    }
}

/// Returns the possible directories of the server's shared files, relative to its program.
fn share(program: &Program) -> Vec<String> {
    let bin = format!("/{}", parent(&program.file.path));
    let prefix = parent(&bin).to_owned();
    // Debian has /usr/lib/postgresql/15/bin and /usr/share/postgresql/15.
    let debian = prefix.replacen("/usr/lib/", "/usr/share/", 1);
    vec![
        join(&prefix, "share"),
        join(&prefix, "share/postgresql"),
        debian,
    ]
}

fn name_all(walk: &mut Walk<'_>, directory: &str) {
    let fuel = walk.fuel.clone();
    for name in fuel.each(walk.view.names(directory)).take(MAX_DATABASE) {
        if let Some(file) = walk
            .view
            .resolve(&join(directory, &name))
            .filter(|found| found.kind == Kind::File)
        {
            walk.name(&file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_have_a_name_and_a_value() {
        let text = "user  www-data; # no\nhttp { include \"mime.types\"; server { listen 80; } }\n";
        let found: Vec<_> = directives(text).collect();
        assert_eq!(
            found,
            [
                ("user", "www-data"),
                ("include", "mime.types"),
                ("listen", "80")
            ]
        );
    }
}
