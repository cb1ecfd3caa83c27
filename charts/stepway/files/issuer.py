"""Makes the certificate with which sentry signs, from the authority that every sidecar trusts; before each start of sentry.

`python3 issuer.py FROM TO`: ca.crt and ca.key are in the one folder; ca.crt, issuer.crt and issuer.key come into the other.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def main(given: Path, to: Path) -> None:
    authority = x509.load_pem_x509_certificate((given / "ca.crt").read_bytes())
    authority_key = serialization.load_pem_private_key((given / "ca.key").read_bytes(), None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only",
         "digital_signature"), False,
    )  # fmt: skip
    issuer = (
        x509.CertificateBuilder()
        .subject_name(x509.Name.from_rfc4514_string("CN=dapr-sentry"))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC).replace(minute=0, second=0))
        .not_valid_after(authority.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    (to / "ca.crt").write_bytes((given / "ca.crt").read_bytes())
    (to / "issuer.crt").write_bytes(issuer.public_bytes(serialization.Encoding.PEM))
    (to / "issuer.key").touch(mode=0o600)
    (to / "issuer.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
