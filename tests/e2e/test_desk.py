"""The console as people use it: a real browser with a microphone, the real engine, real Asterisk, sound both ways."""

import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from callcenter.phone.measure import tone, write_wav
from tests.e2e.house import ROOT, TONES, House, dial, prepared, until, until_hears

WAIT_MS = 20_000
"""Other programs have this machine too."""
NOTE = "暖气一直不热，晋源区；已告知报修电话。"


@pytest.fixture(scope="module", autouse=True)
def console() -> None:
    """The console as `make run` builds it; nothing is done where it is there."""
    built = subprocess.run(
        [ROOT / "tools" / "console.sh", "build"], capture_output=True, text=True, timeout=600, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr


@pytest.fixture
async def chromium(tmp_path: Path) -> AsyncIterator[Browser]:
    """Debian's Chromium; whoever speaks into its microphone speaks with the agent's tone."""
    voice = tmp_path / "voice.wav"
    write_wav(voice, tone(TONES["agent"], 2))
    async with async_playwright() as play:
        browser = await play.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={voice}",
            ],
        )
        yield browser
        await browser.close()


@contextlib.asynccontextmanager
async def desk(browser: Browser, house: House, user: str) -> AsyncIterator[Page]:
    """Somebody logged in whose telephone is this page; nothing in it may have broken in the end."""
    complaints: list[str] = []
    context = await browser.new_context(
        viewport={"width": 1366, "height": 768}, locale="zh-CN", permissions=["microphone"]
    )
    # A pure tone is noise to a suppressor.
    kept = json.dumps({"locale": "zh-CN", "processing": False})
    await context.add_init_script(f"localStorage.setItem('callcenter.settings', {json.dumps(kept)})")
    page = await context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if "Content Security" in said.text else None)
    await page.goto(house.url)
    await page.get_by_label("工号").fill(user)
    await page.get_by_label("密码").fill("demo")
    await page.get_by_role("button", name="登录").click()
    await expect(page.locator(".phone.registered")).to_be_visible(timeout=WAIT_MS)
    try:
        yield page
    finally:
        async with house.rest(user) as rest:
            await rest.put("/api/v1/me/state", {"state": "logged_out"})
            await rest._ask("DELETE", "/api/v1/me/softphone")
        await context.close()
    assert complaints == []


async def is_in(page: Page, state: str) -> None:
    await expect(page.locator(f".pill.{state}")).to_be_visible(timeout=WAIT_MS)


async def nothing_scrolls(page: Page) -> None:
    assert await page.evaluate(
        "document.documentElement.scrollHeight <= innerHeight && document.documentElement.scrollWidth <= innerWidth"
    )


@pytest.fixture(scope="module")
def patient_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house with time to write."""
    house = House(tmp_path_factory.mktemp("desk"))
    try:
        prepared(house, offer_seconds=20, wrap_up_seconds=60)
        house.start()
        yield house
    finally:
        house.close()


async def test_a_working_day_by_single_keys(patient_house: House, chromium: Browser) -> None:
    """Be called, answer, hear and be heard, mute, hold, bring a specialist in, leave, wrap up."""
    house = patient_house
    async with AsyncExitStack() as stack:
        specialist = await stack.enter_async_context(house.person("spec1", "8001"))
        page = await stack.enter_async_context(desk(chromium, house, "agent1"))
        citizen = await stack.enter_async_context(house.caller("13812345678"))
        await page.keyboard.press("F9")
        await is_in(page, "ready")
        call = await dial(citizen)
        stack.push_async_callback(call.hang_up)
        await expect(page.get_by_role("region", name="来电")).to_contain_text("13812345678", timeout=WAIT_MS)
        await expect(page.get_by_role("button", name="接听")).to_be_enabled(timeout=WAIT_MS)
        await nothing_scrolls(page)
        await page.keyboard.press("F2")
        await is_in(page, "talking")
        await until_hears(call, "agent", seconds=10)
        # The caller's tone is loud in the browser: at least three of five bars.
        heard = page.get_by_role("meter", name="对方音量")
        await until(lambda: heard.get_attribute("aria-valuenow"), lambda bars: int(bars or 0) >= 3)

        await page.keyboard.press("F4")
        await until_hears(call, seconds=10)
        await page.keyboard.press("F4")
        await until_hears(call, "agent", seconds=10)
        await page.keyboard.press("F6")
        await is_in(page, "held")
        await until_hears(call, seconds=10)
        await page.keyboard.press("F6")
        await until_hears(call, "agent", seconds=10)

        await page.keyboard.press("F7")
        await page.get_by_role("combobox", name="姓名").fill("市场监管")
        await nothing_scrolls(page)
        await page.keyboard.press("Enter")
        expert = await specialist.answers("specialist")
        await is_in(page, "held")
        await until_hears(expert, "agent", seconds=10)
        await until_hears(call, seconds=10)
        await expect(page.get_by_role("button", name="合并")).to_be_enabled(timeout=WAIT_MS)
        await page.keyboard.press("F7")
        await until_hears(call, "agent", "specialist", seconds=10)
        await page.keyboard.press("F8")
        await is_in(page, "wrap_up")
        await until_hears(call, "specialist", seconds=10)

        await page.get_by_role("button", name="直接答复").click()
        await page.get_by_role("button", name="求助").click()
        await page.get_by_label("标题").fill("暖气不热")
        await page.get_by_label("内容").fill(NOTE)
        # By the first letters of the pinyin of 温度不达标.
        category = page.get_by_role("combobox", name="分类")
        await category.fill("wdbdb")
        await category.press("Enter")
        await expect(category).to_have_value("城乡建设 › 供热 › 温度不达标")
        await nothing_scrolls(page)
        await page.keyboard.press("Control+Enter")
        await expect(page.get_by_text("还缺：地址、联系人")).to_be_visible()
        await page.keyboard.press("Control+Enter")
        await is_in(page, "ready")
        await expect(page.get_by_role("row").nth(1)).to_be_visible()
        async with house.rest("agent1") as rest:
            ticket = (await rest.get("/api/v1/tickets"))["tickets"][0]
            whole = await rest.get(f"/api/v1/tickets/{ticket['number']}")
            form = await rest.get(f"/api/v1/tickets/{ticket['number']}/form")
        assert (whole["disposition"], whole["note"]) == ("answered", NOTE)
        assert (form["kind"], form["title"], form["content"]) == ("help", "暖气不热", NOTE)
        assert form["category"]
        await call.hang_up()
        await expert.ended.wait(10)


async def test_a_lost_network_and_a_restarted_engine_are_come_back_from(
    patient_house: House, chromium: Browser
) -> None:
    """The screen says that it may be old, the caller hears the agent all the time, and the truth comes back."""
    house = patient_house
    async with desk(chromium, house, "agent1") as page, house.caller("13900001111") as citizen:
        await page.keyboard.press("F9")
        await is_in(page, "ready")
        call = await dial(citizen)
        await expect(page.get_by_role("button", name="接听")).to_be_enabled(timeout=WAIT_MS)
        await page.keyboard.press("F2")
        await until_hears(call, "agent", seconds=10)
        await page.get_by_label("内容").fill(NOTE)

        house.kill()
        await expect(page.get_by_text("与服务器断开")).to_be_visible(timeout=WAIT_MS)
        await until_hears(call, "agent")
        house.start()
        await expect(page.get_by_text("与服务器断开")).to_be_hidden(timeout=WAIT_MS)
        await is_in(page, "talking")
        await until_hears(call, "agent")
        assert await page.get_by_label("内容").input_value() == NOTE

        await page.keyboard.press("F2")
        await is_in(page, "wrap_up")
        await call.hang_up()
        await page.reload()
        await expect(page.get_by_label("内容")).to_have_value(NOTE, timeout=WAIT_MS)
        await page.get_by_role("button", name="直接答复").click()
        await page.keyboard.press("Control+Enter")
        await is_in(page, "ready")


async def test_a_refused_microphone_and_a_second_window_say_what_to_do(
    patient_house: House, chromium: Browser
) -> None:
    house = patient_house
    async with desk(chromium, house, "agent1") as page:
        second = await page.context.new_page()
        await second.goto(house.url)
        await second.get_by_label("工号").fill("agent1")
        await second.get_by_label("密码").fill("demo")
        await second.get_by_role("button", name="登录").click()
        await expect(second.locator(".phone.registered")).to_be_visible(timeout=WAIT_MS)
        await expect(page.get_by_text("电话已在另一个窗口或电脑上使用")).to_be_visible(timeout=WAIT_MS)
        await page.get_by_role("button", name="在此使用电话").click()
        await expect(page.locator(".phone.registered")).to_be_visible(timeout=WAIT_MS)
        await expect(second.get_by_text("电话已在另一个窗口或电脑上使用")).to_be_visible(timeout=WAIT_MS)
        await second.close()

        # What a browser does when its user says no.
        await page.evaluate(
            "() => { navigator.mediaDevices.getUserMedia = () =>"
            " Promise.reject(new DOMException('', 'NotAllowedError')) }"
        )
        await page.get_by_role("button", name="设置").click()
        await expect(page.get_by_role("dialog").get_by_text("麦克风被浏览器拒绝")).to_be_visible(
            timeout=WAIT_MS
        )


async def test_each_role_comes_to_its_own_page(patient_house: House, chromium: Browser) -> None:
    house = patient_house
    for user, landmark in [("leader1", "告警"), ("qa1", "正在排队")]:
        context = await chromium.new_context(viewport={"width": 1366, "height": 768}, locale="zh-CN")
        page = await context.new_page()
        await page.goto(house.url)
        await page.get_by_label("工号").fill(user)
        await page.get_by_label("密码").fill("wrong")
        await page.get_by_role("button", name="登录").click()
        await expect(page.get_by_text("用户名或密码不对")).to_be_visible(timeout=WAIT_MS)
        await page.get_by_label("密码").fill("demo")
        await page.get_by_role("button", name="登录").click()
        await expect(page.get_by_role("heading", name=landmark)).to_be_visible(timeout=WAIT_MS)
        await nothing_scrolls(page)
        await page.goto(f"{house.url}/#/wall")
        await expect(page.get_by_role("heading", name="12345 热线现场")).to_be_visible(timeout=WAIT_MS)
        await context.close()
