//! Regular expressions that Envoy's RE2 is certain to take.
//!
//! The expression is parsed with the `regex` family's parser, whose syntax was modelled on RE2's: neither knows look-around
//! or back references. What only that parser accepts (set operations, some flags and escapes, stacked repetitions) is refused
//! by a walk over the syntax tree. Cost is linear in the expression, which is bounded.
//!
//! Envoy 1.40 also refuses programs of more than 100 RE2 instructions unless its runtime or the (deprecated, still
//! honoured) `google_re2.max_program_size` says otherwise. We estimate the program from above and write the field only
//! for expressions that might need it.

use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatcher,
    regex_matcher::{EngineType, GoogleRe2},
};
use regex_syntax::{
    ParserBuilder,
    ast::{
        self, AssertionKind, Ast, ClassSet, ClassSetItem, ClassUnicodeKind, FlagsItemKind,
        GroupKind, HexLiteralKind, LiteralKind, Visitor,
    },
    hir::{Class, Hir, HirKind},
};

const MAX_BYTES: usize = 1024;
/// Estimates above this get an explicit limit; Envoy's own is 100 and the estimate may fall short by a few
/// instructions of prologue.
const SMALL_PROGRAM: u64 = 60;
/// What we allow at most: Istio 1.4 allowed 1024 counted by RE2; the estimate runs higher.
const MAX_PROGRAM: u64 = 10_000;
/// RE2's bound on the product of nested repetition counts.
const MAX_REPEAT: u64 = 1000;
const ACCEPTED: &str = "accepted: RE2 syntax, without look-around and back references";

/// Builds the matcher, or says why the expression cannot be used.
pub fn matcher(pattern: &str) -> Result<RegexMatcher, String> {
    if pattern.is_empty() {
        return Err(format!("the regular expression is empty; {ACCEPTED}"));
    }
    if pattern.len() > MAX_BYTES {
        return Err(format!(
            "the regular expression has {} bytes; accepted: up to {MAX_BYTES}",
            pattern.len()
        ));
    }
    let tree = ast::parse::ParserBuilder::new()
        .nest_limit(100)
        .build()
        .parse(pattern)
        .map_err(|e| {
            format!(
                "{pattern:?} is no regular expression: {}; {ACCEPTED}",
                e.kind()
            )
        })?;
    ast::visit(&tree, Re2Only)
        .map_err(|what| format!("RE2 does not take {what}, in {pattern:?}; {ACCEPTED}"))?;
    let hir = ParserBuilder::new()
        .nest_limit(100)
        .build()
        .parse(pattern)
        .map_err(|e| {
            format!(
                "{pattern:?} is no regular expression: {}; {ACCEPTED}",
                last_line(&e.to_string())
            )
        })?;
    if repeat(&hir) > MAX_REPEAT {
        return Err(format!(
            "repetitions in {pattern:?} multiply to over {MAX_REPEAT}; {ACCEPTED}"
        ));
    }
    let size = program(&hir);
    if size > MAX_PROGRAM {
        return Err(format!(
            "{pattern:?} needs a program of about {size} instructions; accepted: {MAX_PROGRAM}"
        ));
    }
    #[allow(deprecated)] // see the module's documentation
    let engine_type = (size > SMALL_PROGRAM).then(|| {
        let max_program_size = super::uint(u32::try_from(MAX_PROGRAM).unwrap_or(u32::MAX));
        EngineType::GoogleRe2(GoogleRe2 { max_program_size })
    });
    Ok(RegexMatcher {
        regex: pattern.to_owned(),
        engine_type,
    })
}

fn last_line(text: &str) -> &str {
    text.lines()
        .last()
        .unwrap_or_default()
        .trim_start_matches("error:")
        .trim()
}

/// Refuses what RE2 does not know.
struct Re2Only;

impl Visitor for Re2Only {
    type Output = ();
    type Err = &'static str;

    fn finish(self) -> Result<(), Self::Err> {
        Ok(())
    }

    fn visit_pre(&mut self, node: &Ast) -> Result<(), Self::Err> {
        match node {
            Ast::Flags(set) => flags(&set.flags),
            Ast::Group(group) => match &group.kind {
                GroupKind::NonCapturing(set) => flags(set),
                GroupKind::CaptureName {
                    starts_with_p: false,
                    ..
                } => Err("a group name without P"),
                _ => Ok(()),
            },
            Ast::Assertion(assertion) => match assertion.kind {
                AssertionKind::StartLine
                | AssertionKind::EndLine
                | AssertionKind::StartText
                | AssertionKind::EndText
                | AssertionKind::WordBoundary
                | AssertionKind::NotWordBoundary => Ok(()),
                _ => Err("a half word boundary"),
            },
            Ast::Repetition(repetition) => match &*repetition.ast {
                Ast::Repetition(_) => Err("a repetition of a repetition without a group"),
                Ast::Assertion(_) | Ast::Flags(_) | Ast::Empty(_) => Err("a repetition of nothing"),
                _ => Ok(()),
            },
            Ast::Literal(l) => literal(l),
            Ast::ClassUnicode(class) => unicode(&class.kind),
            Ast::ClassBracketed(class) => match &class.kind {
                ClassSet::BinaryOp(_) => Err("a set operation in a class"),
                ClassSet::Item(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Self::Err> {
        match item {
            ClassSetItem::Bracketed(_) => Err("a class inside a class"),
            ClassSetItem::Unicode(class) => unicode(&class.kind),
            ClassSetItem::Literal(l) => literal(l),
            ClassSetItem::Range(range) => literal(&range.start).and_then(|()| literal(&range.end)),
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(
        &mut self,
        _: &ast::ClassSetBinaryOp,
    ) -> Result<(), Self::Err> {
        Err("a set operation in a class")
    }
}

fn flags(set: &ast::Flags) -> Result<(), &'static str> {
    let known = set.items.iter().all(|item| match item.kind {
        FlagsItemKind::Negation => true,
        FlagsItemKind::Flag(flag) => matches!(
            flag,
            ast::Flag::CaseInsensitive
                | ast::Flag::MultiLine
                | ast::Flag::DotMatchesNewLine
                | ast::Flag::SwapGreed
        ),
    });
    if known {
        Ok(())
    } else {
        Err("a flag other than i, m, s and U")
    }
}

fn literal(literal: &ast::Literal) -> Result<(), &'static str> {
    match &literal.kind {
        LiteralKind::Verbatim | LiteralKind::Meta | LiteralKind::Special(_) => Ok(()),
        LiteralKind::Superfluous if literal.c.is_ascii_punctuation() && literal.c != '_' => Ok(()),
        LiteralKind::HexFixed(HexLiteralKind::X) | LiteralKind::HexBrace(HexLiteralKind::X) => {
            Ok(())
        }
        _ => Err("this escape"),
    }
}

fn unicode(kind: &ClassUnicodeKind) -> Result<(), &'static str> {
    const SCRIPTS: [&str; 8] = [
        "Arabic", "Cyrillic", "Greek", "Han", "Hebrew", "Hiragana", "Katakana", "Latin",
    ];
    const CATEGORIES: [&str; 34] = [
        "C", "Cc", "Cf", "Co", "Cs", "L", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc", "Me", "Mn", "N",
        "Nd", "Nl", "No", "P", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S", "Sc", "Sk", "Sm",
        "So", "Z", "Zs",
    ];
    let known = match kind {
        ClassUnicodeKind::OneLetter(c) => CATEGORIES.contains(&c.to_string().as_str()),
        ClassUnicodeKind::Named(name) => {
            CATEGORIES.contains(&name.as_str()) || SCRIPTS.contains(&name.as_str())
        }
        ClassUnicodeKind::NamedValue { .. } => false,
    };
    if known {
        Ok(())
    } else {
        Err("this Unicode class")
    }
}

/// The largest product of repetition counts on a path down the tree.
fn repeat(hir: &Hir) -> u64 {
    match hir.kind() {
        HirKind::Repetition(r) => {
            let times = u64::from(r.max.unwrap_or(r.min)).max(1);
            times.saturating_mul(repeat(&r.sub))
        }
        HirKind::Capture(c) => repeat(&c.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().map(repeat).max().unwrap_or(1)
        }
        _ => 1,
    }
}

/// RE2 instructions, estimated from above.
fn program(hir: &Hir) -> u64 {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 2,
        HirKind::Literal(literal) => 2 * literal.0.len() as u64,
        HirKind::Class(class) => match class {
            Class::Unicode(c) if c.is_ascii() => 2 * c.ranges().len() as u64,
            Class::Unicode(c) => 12 + 6 * c.ranges().len() as u64,
            Class::Bytes(c) => 2 * c.ranges().len() as u64,
        },
        HirKind::Repetition(r) => {
            let times = u64::from(r.max.unwrap_or(r.min.saturating_add(1))).max(1);
            times.saturating_mul(program(&r.sub).saturating_add(2))
        }
        HirKind::Capture(c) => program(&c.sub).saturating_add(2),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts
            .iter()
            .map(|p| program(p).saturating_add(1))
            .fold(0, u64::saturating_add),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn usable_expressions_pass() {
        for good in [
            "^/api/v[0-9]+/.*$",
            "(?i)chrome",
            "[[:alpha:]]+",
            "a{1,3}",
            r"\d+\.\d+",
            r".*\bfoo\b.*",
            r"\p{Greek}\x{41}",
        ] {
            assert!(matcher(good).is_ok(), "{good}: {:?}", matcher(good));
        }
    }

    #[test]
    fn what_re2_refuses_is_refused_with_a_reason() {
        let long = "a".repeat(2000);
        for bad in [
            "",
            "*",
            "(?=x)",
            r"(a)\1",
            "(",
            "a{1001}",
            "(a{100}){100}",
            "[a&&b]",
            "(?x)a",
            "[z-a]",
            "a**",
            "^*",
            r"\_",
            r"\u0041",
            "(?<n>a)",
            r"\p{Alphabetic}",
            "(((a|b){10}){10}){10}[^x]{999}",
            &long,
        ] {
            let error = matcher(bad).expect_err(bad);
            assert!(error.contains("accepted"), "{error}");
        }
    }

    #[test]
    fn only_large_programs_name_a_limit() {
        assert!(matcher("/a/[0-9]+").unwrap().engine_type.is_none());
        assert!(
            matcher("/(abc|def|ghi|jkl|mno){20}")
                .unwrap()
                .engine_type
                .is_some()
        );
    }
}
